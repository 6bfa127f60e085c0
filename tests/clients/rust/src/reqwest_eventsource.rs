use futures::StreamExt;
use reqwest_0_12::Client;
use reqwest_eventsource::{Error, Event, EventSource};

use crate::{Outcome, PAUSE, SILENCE, is_final, show};

pub async fn read(url: &str) -> Outcome {
    let client = Client::builder().read_timeout(SILENCE).build()?;
    let mut cursor = String::from("-1");
    loop {
        let mut source = EventSource::new(client.get(url).query(&[("after", &cursor)]))?;
        while let Some(item) = source.next().await {
            match item {
                Ok(Event::Message(message)) => {
                    show(&message.id, &message.event, &message.data);
                    if message.event == "end" {
                        return Ok(());
                    }
                    if !message.id.is_empty() {
                        cursor = message.id; // `reset` has none
                    }
                }
                Err(Error::InvalidStatusCode(status, _)) if is_final(status.as_u16()) => {
                    return Ok(());
                }
                _ => {} // it comes back by itself
            }
        }
        tokio::time::sleep(PAUSE).await; // but not from a 5xx
    }
}
