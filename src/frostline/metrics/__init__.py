"""How good a classifier's answers are, and how sure that is: `scores`, `calibration`, `comparison`.

Nothing is imported here: what only needs `calibration` (training does) must not depend on the rest.
"""
