"""Training: the only room that needs scikit-learn, and only while a model is fitted."""
