"""Evaluation on the host: metrics, intervals, subset sweeps, baselines, report.

What a run calls, in order (only `evaluate` imports JAX):

    subsets = subsets.choose(spec.modality_names, present_NM, patient_N, min_patients=10)
    predictions = evaluate.sweep(
        predict, placed.batches(...), spec, subsets.matrix(subsets), patients=patient_N
    )           # predict(batch, keep_M): evaluate.mask_modalities, apply, m4.task_losses.predict
    cuts = results.thresholds(validation_predictions, spec)     # of a sweep of the full subset
    rows = baselines.fit_predict(spec, X_train, y_train, X_test)           # the reference rows
    document = results.compose(
        predictions, spec, subsets, split="test", thresholds=cuts, references=rows
    )
    results.write(document, workdir); page.write(workdir); words.print_table(document)

During training `results.summary(predictions, spec)` gives {'task/metric': value} of one sweep
with the full subset only, without intervals.
"""
