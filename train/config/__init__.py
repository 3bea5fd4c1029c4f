"""What a person writes: recipes, cluster files, ablation files; read, checked, and told where they are wrong."""
