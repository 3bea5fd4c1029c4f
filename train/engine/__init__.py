"""How any stage is kept and run: the graph, the store, the worker, its ranks, and the policies that pass between stages."""
