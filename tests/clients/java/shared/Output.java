import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.json.JSONArray;

/** What a client shows. */
public final class Output {
    private static final PrintStream OUT =
            new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);

    /** Prints an event as a line of JSON. */
    public static void show(String id, String event, String data) {
        OUT.println(new JSONArray(new String[] {id, event, data}));
    }
}
