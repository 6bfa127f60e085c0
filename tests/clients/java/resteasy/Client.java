import jakarta.ws.rs.ClientErrorException;
import jakarta.ws.rs.client.ClientBuilder;
import jakarta.ws.rs.sse.InboundSseEvent;
import jakarta.ws.rs.sse.SseEventSource;
import java.util.concurrent.CountDownLatch;

public final class Client {
    private volatile String cursor = "-1";
    private volatile boolean done;
    private volatile CountDownLatch closed;

    public static void main(String[] arguments) throws InterruptedException {
        new Client().read(arguments[0]);
        System.exit(0);
    }

    private void read(String url) throws InterruptedException {
        var target = ClientBuilder.newClient().target(url);
        while (true) {
            closed = new CountDownLatch(1);
            try (var source = SseEventSource.target(target.queryParam("after", cursor)).build()) {
                source.register(this::onEvent, this::onError);
                source.open();
                closed.await();
            }
            if (done) {
                return;
            }
            Thread.sleep(1000); // it gives up where it cannot connect
        }
    }

    private void onEvent(InboundSseEvent event) {
        Output.show(event.getId(), event.getName(), event.readData());
        if (event.getId() != null) {
            cursor = event.getId(); // `reset` has none
        }
        if (event.getName().equals("end")) {
            done = true;
            closed.countDown();
        }
    }

    private void onError(Throwable error) {
        done |= error instanceof ClientErrorException;
        closed.countDown();
    }
}
