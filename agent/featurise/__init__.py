"""Features: recipes as data, and the one function that turns events into rows of numbers, in training and live."""
