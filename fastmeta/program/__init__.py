"""nn.Module → plan of ops: trace, lowering, fuse, plan, layout."""
