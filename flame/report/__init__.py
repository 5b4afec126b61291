"""From run folders to what people read. Nothing here trains, and nothing reads W&B.

| for                            | modules                                                                          |
|--------------------------------|----------------------------------------------------------------------------------|
| commands                       | `__main__` (tables), `page` (html), `evidence` (figures), `dashboard`            |
| what was recorded              | `runs`, `holdings` (who held which data), `trees` (recorded rounds)              |
| results/*.csv and their tables | `records`, `vectors` -> `published`, with `recipes` (what was planned)           |
| rows of a table                | `accuracy_tables`, `vector_tables`, `preset_tables`, of `contrasts` and `tables` |
| numbers and text               | `statistics`, `markup`                                                           |
| figures, put together of panels| `run_figure`, `figures` (cells), `question_figures`, `skew_figure` (`samples`)   |
"""
