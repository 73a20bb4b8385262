"""A world in which everything goes wrong that can, drawn from one seed, and an oracle that checks what comes of it.

`scripts/simulate --seeds 500` runs it; `stage` takes turns, `world` is the whole, `broker` and `clients` are the
servers, `process` is a worker around the product's `Engine`, `steps` is what workers did, `expected` and `oracle` know
what must be, `mutants` take guards away, `shrinking` makes a failing seed small.
"""
