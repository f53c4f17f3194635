"""A published model, run: what apps in Python use. Nothing here imports transformers or the pipeline's libraries.

`loading.load` finds a release and checks it, `model.Model` answers.
"""
