"""How good on slides: detections, stages and scores against the truth of a cohort, by the rules of Camelyon's challenges."""
