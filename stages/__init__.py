"""The pipeline's verbs: one module per DVC stage. Importing a module does nothing; `main` runs it."""
