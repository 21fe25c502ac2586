//! What the daemon tells those who watch it, in the formats of Prometheus.
//!
//! On each visit everything that is counted is gathered into a [`Report`] and written down: in OpenMetrics for a client
//! that asks for it, else in the older text format. The listener also answers `/healthz` and `/readyz`, so that a
//! supervisor needs no way to the clients' port.

mod process;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use crate::http::Service;
use crate::http::scrape::{Page, Pages, Scrapes};
use crate::logging::Logger;
use crate::metrics::{Family, Report, Value};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Starts to tell of this server on this listener.
pub fn start(listener: TcpListener, service: &Arc<Service>, log: Logger) -> io::Result<Scrapes> {
    // The server ends this listener before itself.
    let service = Arc::downgrade(service);
    let pages: Pages = Box::new(move |path, accept| {
        let service = service.upgrade()?;
        match path {
            "/metrics" => Some(metrics_page(&service, accept)),
            "/healthz" => Some(word_page(200, "ok\n")),
            "/readyz" if service.is_ready() => Some(word_page(200, "ready\n")),
            "/readyz" => Some(word_page(503, "not ready\n")),
            _ => None,
        }
    });
    Scrapes::start(listener, log, pages)
}

fn metrics_page(service: &Service, accept: &str) -> Page {
    let (content_type, is_open) = if accept.contains("application/openmetrics-text") {
        (OPEN_METRICS, true)
    } else {
        (prometheus_text::CONTENT_TYPE, false)
    };
    match write_down(gather(service), is_open) {
        Ok(body) => Page {
            status: 200,
            content_type,
            body,
        },
        Err(fmt::Error) => word_page(500, "the metrics could not be written down\n"),
    }
}

fn word_page(status: u16, word: &str) -> Page {
    Page {
        status,
        content_type: "text/plain; charset=utf-8",
        body: word.to_owned(),
    }
}

fn gather(service: &Service) -> Report {
    let mut report = Report::new();
    report.level(
        "lockd_build_info",
        "Which program this is.",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    service.report(&mut report);
    process::report(&mut report);
    report
}

fn write_down(report: Report, is_open: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Sheet(report)));
    let mut page = String::with_capacity(16 * 1024);
    if is_open {
        text::encode(&mut page, &registry)?;
    } else {
        prometheus_text::encode(&mut page, &registry)?;
    }
    Ok(page)
}

/// A report on its way to paper.
#[derive(Debug)]
struct Sheet(Report);

impl Collector for Sheet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.0.families() {
            encode_family(&mut encoder, family)?;
        }
        Ok(())
    }
}

fn encode_family(encoder: &mut DescriptorEncoder<'_>, family: &Family) -> Result<(), fmt::Error> {
    let kind = match family.samples.first() {
        Some((_, Value::Count(_) | Value::Amount(_))) => MetricType::Counter,
        Some((_, Value::Level(_))) => MetricType::Gauge,
        Some((_, Value::Spread(_))) => MetricType::Histogram,
        None => return Ok(()),
    };
    let help = family.help.trim_end_matches('.');
    let mut metric = encoder.encode_descriptor(family.name, help, None, kind)?;
    for (labels, value) in &family.samples {
        let mut one = metric.encode_family(labels)?;
        match value {
            Value::Count(count) => one.encode_counter(count, None::<&Exemplar<Vec<(&str, String)>, u64>>)?,
            Value::Amount(amount) => one.encode_counter(amount, None::<&Exemplar<Vec<(&str, String)>, u64>>)?,
            Value::Level(level) => one.encode_gauge(level)?,
            Value::Spread(spread) => {
                let count = spread.buckets.iter().map(|(_, count)| count).sum();
                one.encode_histogram::<Vec<(&str, String)>>(spread.sum, count, &spread.buckets, None)?;
            }
        }
    }
    Ok(())
}
