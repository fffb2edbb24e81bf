"""Per-sample gradients in one backward pass, in the structured form in which backpropagation delivers them."""
