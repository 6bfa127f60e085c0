use futures::StreamExt;
use reqwest::Client;
use sseer::reqwest::{EventSource, StreamEvent};

use crate::{Outcome, PAUSE, SILENCE, is_final, show};

pub async fn read(url: &str) -> Outcome {
    let client = Client::builder().read_timeout(SILENCE).build()?;
    let mut cursor = String::from("-1");
    loop {
        let mut source = EventSource::new(client.get(url).query(&[("after", &cursor)]))?;
        while let Some(item) = source.next().await {
            match item {
                Ok(StreamEvent::Event(event)) => {
                    show(&event.id, &event.event, &event.data);
                    if event.event == "end" {
                        return Ok(());
                    }
                    if !event.id.is_empty() {
                        cursor = event.id.to_string(); // `reset` has none
                    }
                }
                Ok(StreamEvent::Open) => {}
                Err(error)
                    if error
                        .status_code()
                        .is_some_and(|status| is_final(status.as_u16())) =>
                {
                    return Ok(());
                }
                Err(_) => break, // a source that was refused panics when it is asked for more
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
