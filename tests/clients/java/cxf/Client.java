import jakarta.ws.rs.ClientErrorException;
import jakarta.ws.rs.client.ClientBuilder;
import jakarta.ws.rs.sse.InboundSseEvent;
import jakarta.ws.rs.sse.SseEventSource;
import java.util.concurrent.CountDownLatch;

public final class Client {
    private final CountDownLatch done = new CountDownLatch(1);

    public static void main(String[] arguments) throws InterruptedException {
        new Client().read(arguments[0]);
        System.exit(0);
    }

    private void read(String url) throws InterruptedException {
        try (var source = SseEventSource.target(ClientBuilder.newClient().target(url)).build()) {
            source.register(this::onEvent, this::onError);
            source.open();
            done.await();
        }
    }

    private void onEvent(InboundSseEvent event) {
        Output.show(event.getId(), event.getName(), event.readData());
        if (event.getName().equals("end")) {
            done.countDown();
        }
    }

    private void onError(Throwable error) { // after which it comes back by itself
        if (error instanceof ClientErrorException) {
            done.countDown();
        }
    }
}
