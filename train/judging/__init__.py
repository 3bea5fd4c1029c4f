"""Who says which answer is better: judges that score answers or compare two, and the rules that make pairs of scores."""
