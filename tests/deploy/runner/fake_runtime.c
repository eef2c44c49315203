/* The last error of a CUDA runtime. */

static int last_error = 0;

void fake_error(int code) { last_error = code; }
int cudaPeekAtLastError(void) { return last_error; }
int cudaGetLastError(void) {
    int code = last_error;
    last_error = 0;
    return code;
}
