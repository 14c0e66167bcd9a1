/* Row by row decoding by libjpeg's own interface. TurboJPEG's decodes a whole picture in one call, which nothing can stop.
 *
 * libjpeg ends with an error by calling error_exit, which must not return. Here it jumps back to the function that was
 * called from outside, all within C: no call of Rust's is on the stack but clip_jpeg's `stop`, which has returned. */
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum { CLIP_JPEG_OK = 0, CLIP_JPEG_BROKEN = 1, CLIP_JPEG_STOPPED = 2, CLIP_JPEG_MEMORY = 3 };

struct clip_jpeg {
	struct jpeg_decompress_struct info;
	struct jpeg_error_mgr errors;
	struct jpeg_progress_mgr progress;
	jmp_buf escape;
	int (*stop)(const void *);
	const void *context;
	int stopped;
	int short_scan; /* the scan, counted from 1, that ended too soon; 0: none */
	unsigned short_row; /* and the row of MCUs in it */
	char message[JMSG_LENGTH_MAX];
};

static void error_exit(j_common_ptr info)
{
	struct clip_jpeg *jpeg = (struct clip_jpeg *) info;

	info->err->format_message(info, jpeg->message);
	longjmp(jpeg->escape, 1);
}

static void emit_message(j_common_ptr info, int level)
{
	struct clip_jpeg *jpeg = (struct clip_jpeg *) info;

	if (level >= 0)
		return;
	info->err->num_warnings++;
	/* Bits were asked for that the data don't have. JWRN_JPEG_EOF alone is no proof: the decoder reads ahead. */
	if (info->err->msg_code == JWRN_HIT_MARKER && jpeg->short_scan == 0) {
		jpeg->short_scan = jpeg->info.input_scan_number > 0 ? jpeg->info.input_scan_number : 1;
		jpeg->short_row = jpeg->info.input_iMCU_row;
	}
}

static void output_message(j_common_ptr info)
{
	(void) info;
}

/* Called for each row of MCUs of each scan, and for each row of pixels. */
static void progress_monitor(j_common_ptr info)
{
	struct clip_jpeg *jpeg = (struct clip_jpeg *) info;

	if (jpeg->stop != NULL && jpeg->stop(jpeg->context)) {
		jpeg->stopped = 1;
		longjmp(jpeg->escape, 1);
	}
}

static int failure(struct clip_jpeg *jpeg)
{
	if (jpeg->stopped)
		return CLIP_JPEG_STOPPED;
	if (jpeg->errors.msg_code == JERR_OUT_OF_MEMORY || jpeg->errors.msg_code == JERR_NO_BACKING_STORE)
		return CLIP_JPEG_MEMORY;
	return CLIP_JPEG_BROKEN;
}

struct clip_jpeg *clip_jpeg_new(void)
{
	/* volatile: read after a jump back */
	struct clip_jpeg *volatile jpeg = calloc(1, sizeof *jpeg);

	if (jpeg == NULL)
		return NULL;
	jpeg->info.err = jpeg_std_error(&jpeg->errors);
	jpeg->errors.error_exit = error_exit;
	jpeg->errors.emit_message = emit_message;
	jpeg->errors.output_message = output_message;
	if (setjmp(jpeg->escape)) {
		jpeg_destroy_decompress(&jpeg->info);
		free(jpeg);
		return NULL;
	}
	jpeg_create_decompress(&jpeg->info);
	jpeg->progress.progress_monitor = progress_monitor;
	jpeg->info.progress = &jpeg->progress;
	return jpeg;
}

void clip_jpeg_free(struct clip_jpeg *jpeg)
{
	jpeg_destroy_decompress(&jpeg->info);
	free(jpeg);
}

const char *clip_jpeg_message(const struct clip_jpeg *jpeg)
{
	return jpeg->message;
}

struct clip_jpeg_header {
	unsigned width, height;
	int precision, channels, colorspace, multiscan;
};

/* Tables that an abbreviated file leaves out, as TIFF stores them. The bytes must outlive the call only. */
int clip_jpeg_tables(struct clip_jpeg *jpeg, const unsigned char *bytes, unsigned long length)
{
	if (setjmp(jpeg->escape))
		return failure(jpeg);
	jpeg_mem_src(&jpeg->info, bytes, length);
	jpeg_read_header(&jpeg->info, FALSE);
	return CLIP_JPEG_OK;
}

int clip_jpeg_open(struct clip_jpeg *jpeg, const unsigned char *bytes, unsigned long length,
                   struct clip_jpeg_header *header)
{
	if (setjmp(jpeg->escape))
		return failure(jpeg);
	jpeg_mem_src(&jpeg->info, bytes, length);
	jpeg_read_header(&jpeg->info, TRUE);
	header->width = jpeg->info.image_width;
	header->height = jpeg->info.image_height;
	header->precision = jpeg->info.data_precision;
	header->channels = jpeg->info.num_components;
	header->colorspace = jpeg->info.jpeg_color_space;
	header->multiscan = jpeg_has_multiple_scans(&jpeg->info);
	return CLIP_JPEG_OK;
}

/* `stored` is the colour space of the components where the file's own statement is not to be believed, or 0. */
int clip_jpeg_start(struct clip_jpeg *jpeg, int stored, int colorspace, unsigned shrink, long max_memory,
                    int (*stop)(const void *), const void *context, unsigned *width, unsigned *height, int *channels)
{
	if (setjmp(jpeg->escape))
		return failure(jpeg);
	jpeg->stop = stop;
	jpeg->context = context;
	if (stored != 0)
		jpeg->info.jpeg_color_space = (J_COLOR_SPACE) stored;
	jpeg->info.out_color_space = (J_COLOR_SPACE) colorspace;
	jpeg->info.scale_num = 1;
	jpeg->info.scale_denom = shrink;
	jpeg->info.dct_method = JDCT_ISLOW;
	jpeg->info.do_fancy_upsampling = TRUE;
	jpeg->info.mem->max_memory_to_use = max_memory;
	jpeg_start_decompress(&jpeg->info);
	*width = jpeg->info.output_width;
	*height = jpeg->info.output_height;
	*channels = jpeg->info.output_components;
	return CLIP_JPEG_OK;
}

/* One row of width × channels bytes. */
int clip_jpeg_row(struct clip_jpeg *jpeg, unsigned char *row)
{
	JSAMPROW rows[1];

	if (setjmp(jpeg->escape))
		return failure(jpeg);
	rows[0] = row;
	jpeg_read_scanlines(&jpeg->info, rows, 1);
	return CLIP_JPEG_OK;
}

/* Reads what follows the picture, up to the end marker: a fault there is one of the data before it. */
int clip_jpeg_finish(struct clip_jpeg *jpeg)
{
	if (setjmp(jpeg->escape))
		return failure(jpeg);
	jpeg_finish_decompress(&jpeg->info);
	return CLIP_JPEG_OK;
}

/* How much of the picture the file has: the rows of MCUs before the first that lacks data, and whether every coefficient's
 * last bit was announced by a scan. */
void clip_jpeg_extent(const struct clip_jpeg *jpeg, int *is_short, unsigned *rows, int *complete)
{
	const struct jpeg_decompress_struct *info = &jpeg->info;
	int component, k;

	*is_short = jpeg->short_scan != 0;
	*rows = jpeg->short_row;
	*complete = 1;
	if (info->progressive_mode && info->coef_bits != NULL)
		for (component = 0; component < info->num_components; component++)
			for (k = 0; k < DCTSIZE2; k++)
				if (info->coef_bits[component][k] != 0)
					*complete = 0;
	if (jpeg->short_scan != 0 && jpeg->short_scan != info->input_scan_number)
		*complete = 0;
}

/* --- encoding ------------------------------------------------------------------------------------------------ */

enum { CHUNK = 1 << 16 };

struct encoder {
	struct jpeg_compress_struct info;
	struct jpeg_error_mgr errors;
	struct jpeg_destination_mgr destination;
	jmp_buf escape;
	int (*push)(void *, const unsigned char *, unsigned long);
	void *context;
	int stopped;
	char *message;
	unsigned char chunk[CHUNK];
};

static void encoder_error_exit(j_common_ptr info)
{
	struct encoder *encoder = (struct encoder *) info;

	info->err->format_message(info, encoder->message);
	longjmp(encoder->escape, 1);
}

static void start_chunk(j_compress_ptr info)
{
	struct encoder *encoder = (struct encoder *) info;

	encoder->destination.next_output_byte = encoder->chunk;
	encoder->destination.free_in_buffer = CHUNK;
}

static void push(struct encoder *encoder, unsigned long length)
{
	if (encoder->push(encoder->context, encoder->chunk, length)) {
		encoder->stopped = 1;
		longjmp(encoder->escape, 1);
	}
}

static boolean empty_chunk(j_compress_ptr info)
{
	push((struct encoder *) info, CHUNK);
	start_chunk(info);
	return TRUE;
}

static void last_chunk(j_compress_ptr info)
{
	struct encoder *encoder = (struct encoder *) info;

	push(encoder, CHUNK - encoder->destination.free_in_buffer);
}

/* Encodes packed RGB with full chroma resolution. `push` takes what was written, and now and then nothing; unless it returns 0,
 * the encoding stops. `message` has room for JMSG_LENGTH_MAX (200) bytes. */
int clip_jpeg_encode(const unsigned char *rgb, unsigned width, unsigned height, int quality,
                     int (*push_bytes)(void *, const unsigned char *, unsigned long), void *context, char *message)
{
	/* volatile: read after a jump back */
	struct encoder *volatile encoder = calloc(1, sizeof *encoder);
	int result;

	if (encoder == NULL)
		return CLIP_JPEG_MEMORY;
	encoder->message = message;
	encoder->push = push_bytes;
	encoder->context = context;
	encoder->info.err = jpeg_std_error(&encoder->errors);
	encoder->errors.error_exit = encoder_error_exit;
	encoder->errors.output_message = output_message;
	if (setjmp(encoder->escape)) {
		result = encoder->stopped ? CLIP_JPEG_STOPPED
		         : encoder->errors.msg_code == JERR_OUT_OF_MEMORY ? CLIP_JPEG_MEMORY : CLIP_JPEG_BROKEN;
	} else {
		jpeg_create_compress(&encoder->info);
		encoder->destination.init_destination = start_chunk;
		encoder->destination.empty_output_buffer = empty_chunk;
		encoder->destination.term_destination = last_chunk;
		encoder->info.dest = &encoder->destination;
		encoder->info.image_width = width;
		encoder->info.image_height = height;
		encoder->info.input_components = 3;
		encoder->info.in_color_space = JCS_RGB;
		jpeg_set_defaults(&encoder->info);
		jpeg_set_quality(&encoder->info, quality, TRUE);
		encoder->info.dct_method = JDCT_ISLOW;
		encoder->info.comp_info[0].h_samp_factor = 1;
		encoder->info.comp_info[0].v_samp_factor = 1;
		jpeg_start_compress(&encoder->info, TRUE);
		while (encoder->info.next_scanline < height) {
			JSAMPROW row = (JSAMPROW) (rgb + (size_t) encoder->info.next_scanline * width * 3);

			jpeg_write_scanlines(&encoder->info, &row, 1);
			if (encoder->info.next_scanline % 16 == 0 && encoder->push(encoder->context, NULL, 0)) {
				encoder->stopped = 1;
				longjmp(encoder->escape, 1);
			}
		}
		jpeg_finish_compress(&encoder->info);
		result = CLIP_JPEG_OK;
	}
	jpeg_destroy_compress(&encoder->info);
	free(encoder);
	return result;
}
