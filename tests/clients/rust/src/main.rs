//! The Rust libraries for server-sent events: `clients <library> <url>` reads a generation to its end and prints what
//! the library shows.

mod eventsource_client;
mod eventsource_stream;
mod reqwest_eventsource;
mod reqwest_sse;
mod sseer;

use std::{env, error::Error, time::Duration};

type Outcome = Result<(), Box<dyn Error>>;

/// More than the keep-alives are apart.
const SILENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [library, url] = arguments.as_slice() else {
        return Err("usage: clients <library> <url>".into());
    };
    match library.as_str() {
        "reqwest-eventsource" => reqwest_eventsource::read(url).await,
        "eventsource-client" => eventsource_client::read(url).await,
        "eventsource-stream" => eventsource_stream::read(url).await,
        "reqwest-sse" => reqwest_sse::read(url).await,
        "sseer" => sseer::read(url).await,
        _ => Err("unknown library".into()),
    }
}

/// Prints an event as a line of JSON.
fn show(id: &str, event: &str, data: &str) {
    println!("{}", serde_json::json!([id, event, data]));
}

/// Whether the status is the last word: `end` was seen before, or there is nothing to be read.
fn is_final(status: u16) -> bool {
    status == 204 || (400..500).contains(&status)
}
