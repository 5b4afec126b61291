"""The arena: a fixed set of attacks, in which every defense's worst case counts. Its board is docs/leaderboard.md."""
