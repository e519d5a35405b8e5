"""The networks: the zoo and its training, models by name, where to tap them, and how their activations lie."""
