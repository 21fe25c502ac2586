//! The table: Markdown, medians of the rounds with their extremes.

use std::fmt::Write;

use crate::options::Options;
use crate::run::Turn;

pub(crate) fn table(options: &Options, turns: &[Turn]) -> String {
    let mut out = format!(
        "{} connections, {} bytes, {} rounds of {} s; median (minimum to maximum)\n",
        options.connections,
        options.payload_bytes,
        options.rounds,
        options.length.as_secs()
    );
    for &work in &options.works {
        let _ = write!(
            out,
            "\n| {} | cycles/s | against the first | p50 ms | p99 ms | failed |\n|---|---|---|---|---|---|\n",
            work.name()
        );
        let mut first: Option<Vec<f64>> = None;
        for (index, contender) in options.contenders.iter().enumerate() {
            let own: Vec<&Turn> = turns
                .iter()
                .filter(|turn| turn.contender == index && turn.work == work)
                .collect();
            if own.is_empty() {
                continue;
            }
            let rates: Vec<f64> = own.iter().map(|turn| turn.cycles as f64 / turn.seconds).collect();
            let base = first.get_or_insert_with(|| rates.clone());
            // Turns of the same round stand beside each other in time, so their ratio is what counts.
            let ratios: Vec<f64> = rates.iter().zip(base.iter()).map(|(rate, base)| rate / base).collect();
            let quantile = |share| {
                median(
                    own.iter()
                        .map(|turn| turn.cycle_ns.value_at_quantile(share) as f64 / 1e6),
                )
            };
            let failed: usize = own.iter().map(|turn| turn.failures.len()).sum();
            let _ = writeln!(
                out,
                "| {} | {:.0} | {} | {:.2} | {:.2} | {failed} |",
                contender.name,
                median(rates),
                spread(&ratios),
                quantile(0.5),
                quantile(0.99),
            );
        }
    }
    let mut failures: Vec<String> = turns
        .iter()
        .flat_map(|turn| {
            let whose = format!("{}, {}", options.contenders[turn.contender].name, turn.work.name());
            turn.failures.iter().map(move |failure| format!("{whose}: {failure}"))
        })
        .collect();
    failures.sort();
    failures.dedup();
    for failure in failures.iter().take(10) {
        let _ = write!(out, "\nfailed: {failure}");
    }
    out
}

fn spread(values: &[f64]) -> String {
    if values.iter().any(|value| !value.is_finite()) {
        return "-".to_owned();
    }
    let minimum = values.iter().copied().fold(f64::INFINITY, f64::min);
    let maximum = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({minimum:.2} to {maximum:.2})", median(values.to_vec()))
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
