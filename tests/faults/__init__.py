"""The fault matrix on real servers: what RELIABILITY calls its rows, each a function that injects, waits and judges.

In: numbers of rows, seeds. Out: a table. Invariant: a row has an app, topics, keys and processes of its own, so that it
means the same alone and after any other.

`row` says what a row is and combines its seeds, `stage` gives it servers, workers, a stream and a judge, `proxy` stands
between workers and a server; `rows_deaths`, `rows_groups`, `rows_network`, `rows_store`, `rows_data`, `rows_positions`
hold the rows.
"""
