"""Every picture that Frostline draws, as PNG files of about 900 pixels' width: the size at which MLflow shows them.

Colours are told apart by the colour-blind (Okabe and Ito 2008; cividis), and shapes say the same thing again.

Import the module that draws, not all of them: processes that only need a sheet of pictures shall not load scikit-learn.
"""
