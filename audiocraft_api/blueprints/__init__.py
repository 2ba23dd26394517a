"""Routes. Each module owns one resource: parse and validate, make one service call, render."""
