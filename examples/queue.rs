//! Puts orders into a queue and works on them, against the daemon on its default address: `cargo run --example queue`.

use lockd_client::{Client, Dequeue, Enqueue, Wait};
use serde_json::{Value, json};

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client = Client::builder().endpoint("http://127.0.0.1:9341").build()?;

    for order in 1..=3 {
        client.enqueue_json(
            Enqueue::to("invoices").attribute("tenant", "acme"),
            &json!({ "order": order }),
        )?;
    }

    // Until the queue is empty. A message is leased while the closure works on it, for as long as that takes; one that it does
    // not settle, because it returns early or panics, goes back into the queue as a failed attempt.
    client.subscribe(Dequeue::from_queue("invoices").wait(Wait::No), |message| {
        let invoice: Value = message.json()?;
        println!("order {}, attempt {}", invoice["order"], message.attempts());
        message.ack()?;
        Ok(())
    })?;
    Ok(())
}
