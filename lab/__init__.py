"""What people do with models: data, training, studies, reports."""
