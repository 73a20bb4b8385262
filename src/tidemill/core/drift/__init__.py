"""Drift: what training looked like, and what tells that the world no longer looks so.

In: counts, losses and labels, tick by tick. Out: shifts, e-values and findings. Invariant: judges count integers, so
what they say does not depend on the order of the records within a tick (runs of one class excepted: log order).
"""
