"""One forward: a step's inputs, its run, its logits."""
