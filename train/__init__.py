"""What happens on a rank: model, objective, stream, engine, metrics, export, demo."""
