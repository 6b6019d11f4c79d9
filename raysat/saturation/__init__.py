"""The paper's formulas, and the fits of measured quantities, as functions of numbers."""
