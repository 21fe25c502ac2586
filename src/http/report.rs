//! What a service has to tell whoever watches it: what its own parts count, and how full everything is that can be full.

use std::time::Duration;

use super::Service;
use crate::dispatch::{QueueLevels, Survey};
use crate::metrics::{Report, level_of};

/// So many queues are told one by one.
const QUEUES_TOLD_MAX: usize = 100;
/// What the others are called. No queue and no namespace can be.
const OTHERS: &str = "(others)";
/// How long the dispatcher may take to answer. Without its answer the report has no word of queues.
const SURVEY_PATIENCE: Duration = Duration::from_secs(1);

impl Service {
    /// Notes everything that this floor and those below it count.
    pub fn report(&self, report: &mut Report) {
        if let Some(tally) = &self.edge.tally {
            tally.report(report);
        }
        self.report_load(report);
        self.report_queues(report);
        self.store.report(report);
    }

    fn report_load(&self, report: &mut Report) {
        let ready = usize::from(self.is_ready());
        let help = "1 while new work is welcome: the server does not drain, and its store serves.";
        report.level("lockd_ready", help, &[], level_of(ready));
        let help = "Requests that are not answered yet: waiting for a worker, with one, parked, or streaming.";
        report.level(
            "lockd_http_requests_under_way",
            help,
            &[],
            level_of(self.edge.under_way()),
        );
        let help = "Requests that wait for a worker.";
        report.level("lockd_http_requests_queued", help, &[], level_of(self.queue.len()));
        let (acquires, consumers) = self.dispatcher.parked();
        let help = "Requests that wait and hold no thread.";
        for (kind, count) in [("acquire", acquires), ("consumer", consumers)] {
            report.level("lockd_parked_requests", help, &[("kind", kind)], level_of(count));
        }
        let (subscriptions, watches) = self.messages.streams.open();
        let help = "Streams that are being written.";
        for (kind, count) in [("subscription", subscriptions), ("watch", watches)] {
            report.level("lockd_streams_open", help, &[("kind", kind)], level_of(count));
        }
        let seats = &self.messages.seats;
        let help = "Consumers that wait or are being served.";
        report.level("lockd_queue_consumers", help, &[], level_of(seats.taken()));
        let help = "Most consumers at the same time; more are refused.";
        report.level("lockd_queue_consumers_max", help, &[], level_of(seats.max()));
        let help = "Looks at the store for messages: pages of a queue, and messages that others have changed.";
        report.count("lockd_queue_scans", help, &[], self.messages.scans.get());
    }

    fn report_queues(&self, report: &mut Report) {
        let Some(survey) = self.dispatcher.survey(QUEUES_TOLD_MAX, SURVEY_PATIENCE) else {
            return;
        };
        let Survey { queues, others, known } = &survey;
        report.level(
            "lockd_queues_known",
            "Queues that this server knows anything of.",
            &[],
            level_of(*known),
        );
        let others = others.iter().map(|levels| (OTHERS, OTHERS, levels));
        let rows = queues
            .iter()
            .map(|(id, levels)| (id.namespace.as_str(), id.queue.as_str(), levels));
        for (namespace, queue, levels) in rows.chain(others) {
            let labels = [("lockd_namespace", namespace), ("lockd_queue", queue)];
            let QueueLevels {
                ready,
                in_flight,
                waiting,
            } = *levels;
            let help = "Messages that can be delivered now, as far as this server knows.";
            report.level("lockd_queue_pending", help, &labels, level_of(ready));
            let help = "Messages that are leased, being delivered, or delayed, as far as this server knows.";
            report.level("lockd_queue_in_flight", help, &labels, level_of(in_flight));
            let help = "Consumers that wait for messages.";
            report.level("lockd_queue_waiters", help, &labels, level_of(waiting));
        }
    }
}
