use eventsource_stream::Eventsource;
use futures::StreamExt;
use reqwest::Client;

use crate::{Outcome, PAUSE, SILENCE, is_final, show};

pub async fn read(url: &str) -> Outcome {
    let client = Client::builder().read_timeout(SILENCE).build()?;
    let mut cursor = String::from("-1");
    loop {
        match client
            .get(url)
            .query(&[("after", &cursor)])
            .header("Accept", "text/event-stream")
            .send()
            .await
        {
            Ok(response) if response.status() == 200 => {
                let mut events = response.bytes_stream().eventsource();
                while let Some(Ok(event)) = events.next().await {
                    show(&event.id, &event.event, &event.data);
                    if event.event == "end" {
                        return Ok(());
                    }
                    if !event.id.is_empty() {
                        cursor = event.id; // `reset` has none
                    }
                }
            }
            Ok(response) if is_final(response.status().as_u16()) => return Ok(()),
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}
