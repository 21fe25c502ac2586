//! Changes a state under its lease, against the daemon on its default address: `cargo run --example update`.

use lockd_client::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder().endpoint("http://127.0.0.1:9341").build()?;

    client.acquire_for_update("orders/4711", |order| {
        let mut state: serde_json::Value = order.snapshot()?.unwrap_or_else(|| serde_json::json!({}));
        state["status"] = "paid".into();
        order.save(&state)?;
        Ok(())
    })?;
    Ok(())
}
