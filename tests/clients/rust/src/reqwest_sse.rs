use futures::StreamExt;
use reqwest::Client;
use reqwest_sse::{EventSource, error::EventSourceError};

use crate::{Outcome, PAUSE, SILENCE, is_final, show};

pub async fn read(url: &str) -> Outcome {
    let client = Client::builder().read_timeout(SILENCE).build()?;
    let mut cursor = String::from("-1");
    loop {
        if let Ok(response) = client
            .get(url)
            .query(&[("after", &cursor)])
            .header("Accept", "text/event-stream")
            .send()
            .await
        {
            match response.events().await {
                Ok(mut events) => {
                    while let Some(Ok(event)) = events.next().await {
                        let id = event.last_event_id.unwrap_or_default();
                        show(&id, &event.event_type, &event.data);
                        if event.event_type == "end" {
                            return Ok(());
                        }
                        if !id.is_empty() {
                            cursor = id; // `reset` has none
                        }
                    }
                }
                Err(EventSourceError::BadStatus(status)) if is_final(status.as_u16()) => {
                    return Ok(());
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
