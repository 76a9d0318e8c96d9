"""Choices from numbers alone, pure: `ranking` of trials, `promotion` of a challenger.

Nothing is imported here: the search must not depend on the gate.
"""
