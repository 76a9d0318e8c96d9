"""How good a classifier's answers are, and how sure that is: `scores`, `calibration`, `comparison`,
`answers` (the table of them) and `evaluation` (the whole record).

Nothing is imported here: what only needs `calibration` (training does) must not depend on the rest.
"""
