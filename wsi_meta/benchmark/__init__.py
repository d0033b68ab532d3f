"""The yardsticks of the Camelyon challenges, by their own protocols."""
