"""The systems that fedalign implements, each as phases over named sums."""
