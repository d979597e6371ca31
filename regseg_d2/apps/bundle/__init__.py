"""One folder with all that a prediction needs: written, checked, and pushed to the hub."""
