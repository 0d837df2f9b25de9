// A stand-in for a decoder that follows the protocol and nothing else: the next token comes from a table, logits fall by 10
// from it. Token HANG is never answered.
`ifndef INTAGLIO_ROM_DIR
`define INTAGLIO_ROM_DIR "rom/"
`endif
module decoder_double #(
    parameter [31:0] DIGEST = 0, parameter CONTEXT = 64, parameter LATENCY = 5, parameter [15:0] HANG = 254
) (
    input aclk, input aresetn,
    input [31:0] s_axis_tdata, input s_axis_tvalid, input s_axis_tlast, output s_axis_tready,
    output [31:0] m_axis_tdata, output m_axis_tvalid, output m_axis_tlast, input m_axis_tready,
    input [11:0] s_axil_awaddr, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
    input [11:0] s_axil_araddr, input s_axil_arvalid, output s_axil_arready,
    output reg [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready
);
    localparam IDLE = 0, BUSY = 1, HEAD = 2, SCALE = 3, TOKEN = 4, LOGIT = 5, FULL = 6;
    reg [7:0] table_rom [0:255];
    initial $readmemh({`INTAGLIO_ROM_DIR, "next.hex"}, table_rom);

    reg [2:0] state;
    reg [15:0] token, position, next_position;
    reg [7:0] run, count;
    reg [4:0] top, index;
    reg want, overflow;
    reg [63:0] cycles;
    reg [31:0] stall_in, stall_out, tokens, busy_cycles, send_cycles;
    wire [7:0] next = table_rom[token[7:0]];
    wire [7:0] ranked = next + {3'b0, index};

    assign s_axis_tready = state == IDLE;
    assign m_axis_tvalid = state == HEAD || state == SCALE || state == TOKEN || state == LOGIT || state == FULL;
    assign m_axis_tdata = state == HEAD ? {position, 8'd0, next} : state == SCALE ? {16'hFFFC, 16'd1} :
        state == TOKEN ? {24'd0, ranked} : state == LOGIT ? 32'd1000 - 32'd10 * index : {position, 16'hFFFF};
    assign m_axis_tlast = state == FULL || (state == HEAD && top == 0) || (state == LOGIT && index + 1 == top);
    wire taken = m_axis_tvalid && m_axis_tready;

    wire write = s_axil_awvalid && s_axil_wvalid && !s_axil_bvalid;
    assign s_axil_awready = write;
    assign s_axil_wready = write;
    assign s_axil_bresp = 0;
    assign s_axil_rresp = 0;
    assign s_axil_arready = !s_axil_rvalid;

    always @(posedge aclk) begin
        cycles <= cycles + 1;
        if (state == IDLE && !s_axis_tvalid) stall_in <= stall_in + 1;
        if (m_axis_tvalid && !m_axis_tready) stall_out <= stall_out + 1;
        if (state == BUSY) busy_cycles <= busy_cycles + 1;
        if (m_axis_tvalid) send_cycles <= send_cycles + 1;
        case (state)
            IDLE: if (s_axis_tvalid) begin
                token <= s_axis_tdata[15:0];
                run <= s_axis_tdata[23:16];
                top <= s_axis_tdata[28:24];
                want <= s_axis_tdata[30] || s_axis_tdata[23:16] != 0;
                position <= s_axis_tdata[31] ? 0 : next_position;
                count <= LATENCY;
                state <= !s_axis_tdata[31] && next_position == CONTEXT ? FULL : BUSY;
            end
            BUSY: if (token == HANG) count <= count;
            else if (count != 0) count <= count - 1;
            else begin
                next_position <= position + 1;
                tokens <= tokens + 1;
                state <= want ? HEAD : IDLE;
            end
            FULL: begin
                overflow <= 1;
                if (taken) state <= IDLE;
            end
            HEAD: if (taken && top != 0) begin index <= 0; state <= SCALE; end
            SCALE: if (taken) state <= TOKEN;
            TOKEN: if (taken) state <= LOGIT;
            LOGIT: if (taken && !m_axis_tlast) begin index <= index + 1; state <= TOKEN; end
            default: state <= IDLE;
        endcase
        if (taken && m_axis_tlast && state != FULL) begin
            run <= run - 1;
            token <= {8'd0, next};
            position <= next_position;
            count <= LATENCY;
            state <= run == 0 ? IDLE : next_position == CONTEXT ? FULL : BUSY;
        end
        if (s_axil_bready) s_axil_bvalid <= 0;
        if (write) begin
            s_axil_bvalid <= 1;
            if (s_axil_awaddr == 12'h010 && s_axil_wdata[1]) overflow <= 0;
            if (s_axil_awaddr == 12'h018 && s_axil_wdata[0]) begin
                cycles <= 0; stall_in <= 0; stall_out <= 0; tokens <= 0; busy_cycles <= 0; send_cycles <= 0;
            end
        end
        if (s_axil_rready) s_axil_rvalid <= 0;
        if (s_axil_arvalid && s_axil_arready) begin
            s_axil_rvalid <= 1;
            case (s_axil_araddr)
                12'h000: s_axil_rdata <= 32'h494E5447;
                12'h004: s_axil_rdata <= 1;
                12'h008: s_axil_rdata <= DIGEST;
                12'h010: s_axil_rdata <= {30'd0, overflow, state != IDLE};
                12'h014: s_axil_rdata <= {16'd0, position};
                12'h020: s_axil_rdata <= cycles[31:0];
                12'h024: s_axil_rdata <= cycles[63:32];
                12'h028: s_axil_rdata <= stall_in;
                12'h02C: s_axil_rdata <= stall_out;
                12'h030: s_axil_rdata <= tokens;
                12'h040: s_axil_rdata <= busy_cycles;
                12'h044: s_axil_rdata <= send_cycles;
                default: s_axil_rdata <= 0;
            endcase
        end
        if (!aresetn) begin
            state <= IDLE; next_position <= 0; overflow <= 0; cycles <= 0; stall_in <= 0; stall_out <= 0; tokens <= 0;
            busy_cycles <= 0; send_cycles <= 0; s_axil_bvalid <= 0; s_axil_rvalid <= 0;
        end
    end
endmodule
