"""Known results: the same question gets the stored answer, and equal questions at the same time are worked once."""
