"""Parts of experiments.visualize and experiments.heatmap: one file per picture."""
