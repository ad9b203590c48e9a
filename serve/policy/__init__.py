"""What is decided on top of a model's scores: thresholds on `/predict` and weights on `/rank`, in a document."""
