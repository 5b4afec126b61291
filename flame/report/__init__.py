"""From run folders to what people read. Nothing here trains, and nothing reads W&B.

| for                            | modules                                                                          |
|--------------------------------|----------------------------------------------------------------------------------|
| commands                       | `__main__`                                                                       |
| any runs                       | `comparison` (tables), `curves` (their figure), `page` (html), `figures`, drawn  |
|                                | with `painting`                                                                  |
| what is published              | `recipes` (conf/recipe/) and `records` (results/) -> `tables` -> `published`     |
| numbers and text               | `measures` (of a run), `statistics`, `contrasts` (of two arms), `markup`         |
"""
