"""From run folders to what people read. Nothing here trains, and nothing reads W&B.

Any runs: `comparison`, `curves`, `page`, `figures` with `painting`. What is published: `recipes` and `records` ->
`tables` -> `published`. Numbers and text: `measures` (of a run), `statistics`, `contrasts` (of two arms), `markup`.
"""
