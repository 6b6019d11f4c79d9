"""The paper's formulas and the fits of what is measured, as functions of numbers."""
