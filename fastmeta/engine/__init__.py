"""A meta-step over all tasks at once: objective, inner loop, adjoint, session; what runs it is in `backends`."""
