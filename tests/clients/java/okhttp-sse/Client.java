import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.sse.EventSource;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;

public final class Client extends EventSourceListener {
    private String cursor = "-1";
    private boolean done;
    private CountDownLatch closed;

    public static void main(String[] arguments) throws InterruptedException {
        new Client().read(arguments[0]);
        System.exit(0);
    }

    private void read(String url) throws InterruptedException {
        var client = new OkHttpClient.Builder().readTimeout(Duration.ofMinutes(1)).build();
        while (true) {
            closed = new CountDownLatch(1);
            var request = new Request.Builder().url(url).header("Last-Event-ID", cursor).build();
            EventSources.createFactory(client).newEventSource(request, this);
            closed.await();
            if (done) {
                return;
            }
            Thread.sleep(1000);
        }
    }

    @Override
    public void onEvent(EventSource source, String id, String event, String data) {
        Output.show(id, event, data);
        if (id != null) {
            cursor = id; // `reset` has none
        }
        done = "end".equals(event);
    }

    @Override
    public void onClosed(EventSource source) {
        closed.countDown();
    }

    @Override
    public void onFailure(EventSource source, Throwable error, Response response) {
        done |= response != null && (response.code() == 204 || response.code() / 100 == 4);
        closed.countDown();
    }
}
