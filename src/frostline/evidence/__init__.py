"""How good a model is and how sure that is: scores, comparisons, figures, the gate's rules, the card."""
