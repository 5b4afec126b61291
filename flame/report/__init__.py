"""From run folders to what people read. Nothing here trains, and nothing reads W&B.

| for                            | modules                                                                          |
|--------------------------------|----------------------------------------------------------------------------------|
| commands                       | `__main__` (tables), `page` (html), `evidence` (figures), `dashboard`            |
| what was recorded              | `runs`, `holdings` (who held which data), `trees` (recorded rounds)              |
| results/*.csv and their tables | `records`, `vectors`, `admissions` -> `published`, by `catalogue` (which there    |
|                                | are) and `recipes` (what is planned)                                             |
| rows of a table                | `accuracy_tables`, `vector_tables`, `preset_tables`, `attack_tables`,            |
|                                | `ablation_tables`, `setting_tables`, of `contrasts` and `tables`                 |
| numbers and text               | `statistics`, `markup`                                                           |
| figures, put together of panels| `run_figure`, `figures` (cells), `question_figures`, `skew_figure`,              |
|                                | `setting_figure` (`samples`)                                                     |
"""
